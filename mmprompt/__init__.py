"""mmprompt: the training core. Deep prefix prompts on a frozen OFA, one run at a time."""
