"""Can these preferences teach? A cache -> measures -> findings -> a verdict, and a page."""
