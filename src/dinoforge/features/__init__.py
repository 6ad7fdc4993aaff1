"""Floor 2: frozen features of many images, extracted and stored. Does not know why they are wanted."""
