"""Simulators: who computes the course of a population."""
