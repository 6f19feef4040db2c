"""How fast this project is beside other libraries."""
