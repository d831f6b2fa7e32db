"""Proofs that a variant stays within epsilon of its original."""
