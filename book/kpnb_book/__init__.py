"""What the book needs besides kpnb: its example data, its tables, its pages. Nothing in kpnb
imports it.
"""
