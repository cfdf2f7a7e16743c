"""Prompts with a slot: professions, WinoBias, Winogender, agreement, and files of one's own."""
