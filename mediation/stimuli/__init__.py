"""What is asked: prompts with a slot, the studies' stimuli (professions, WinoBias, Winogender, agreement), files of one's own."""
