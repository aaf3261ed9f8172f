"""Objects in pictures: from clicks or a loose box to the object's mask."""
