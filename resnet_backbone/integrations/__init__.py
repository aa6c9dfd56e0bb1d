"""What ties the networks to other libraries."""
