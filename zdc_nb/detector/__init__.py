"""What a calorimeter is and what it measures."""
