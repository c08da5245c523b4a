"""What a puzzle is: everything that knows about one kind of puzzle lies in its folder here."""
