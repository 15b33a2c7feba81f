"""What the book needs besides kpnb: data, networks, studies, figures, and how notebooks are run.

Nothing in kpnb imports it. The folders are floors, each of which imports only what lies below it:
``figures``, ``run``, ``studies``, then ``networks`` and ``data``, then ``store`` and ``hub``.
"""
