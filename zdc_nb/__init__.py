"""Normalizing flows for the fast simulation of ALICE's neutron Zero Degree Calorimeter.

The rooms in the order in which data flows; each imports only from those before it, and those with
a ``|`` between them know nothing of each other:

``params | storage | hardware`` < ``detector`` < ``data | flows`` < ``generator | evaluation`` <
``training`` < ``study | bench``
"""

__version__ = "0.1.0"
