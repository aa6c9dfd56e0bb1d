"""Measure the backbone beside its peers: what ``resnet-backbone bench`` runs."""
