"""The families of tasks: for each its questions and answers, how a line of OFA's files is read, and how answers are scored."""
