"""Pages for people: what the HTML pages of all stages share."""
