"""Answers, their scores, attacks; evaluations of finished runs."""
