"""Simulated fundus photographs: drawn anatomy, camera, and known faults.

Everything drawn here is simulated and is called so wherever it is shown.
`photograph.draw` makes one; `faults.apply` puts one fault into any photograph.
"""
