"""The policy: an unmodified language model, read over tree packs by one attention and one head."""
