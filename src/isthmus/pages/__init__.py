"""Pages for people: one HTML file that needs no network and no script. Pure: no torch."""
