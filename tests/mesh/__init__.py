"""Runs on several devices, in processes of their own."""
