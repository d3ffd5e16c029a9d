"""Will this flight arrive late? A year of real flights, predicted as they were scheduled."""
