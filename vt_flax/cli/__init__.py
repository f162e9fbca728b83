"""Front doors: one thin module a command, and what they share."""
