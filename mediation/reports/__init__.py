"""What people look at: printed tables, Markdown, figures. Reads results and effects, never a model."""
