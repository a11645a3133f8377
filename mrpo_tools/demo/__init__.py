"""The whole project on three tiny models, made here: tasks, tokenizers, models, and the tour."""
