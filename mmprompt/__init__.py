"""mmprompt: the training core. It trains deep prefix prompts on a frozen OFA, one run at a time."""
