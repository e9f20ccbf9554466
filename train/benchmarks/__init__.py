"""Speed, against plain LLaVA and against lower bounds."""
