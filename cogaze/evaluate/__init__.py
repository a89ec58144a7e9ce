"""Arrays to the numbers that papers print, and the tasks that make them."""
