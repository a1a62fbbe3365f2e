"""DSIModel: T5 with a docid head, its forward pass in training, and the loss over docids.

For training, and for search, which has a forward pass of its own (dsi.search). Uses no other
room.
"""
