"""Songs and prompts in, numbers with their uncertainty out. Knows no training and no config."""
