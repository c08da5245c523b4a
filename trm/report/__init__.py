"""Tables, plots and a page from run folders; see trm/report/__main__.py."""
