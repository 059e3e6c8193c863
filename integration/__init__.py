"""Tests on real mounts, over real XFS volumes on loop devices: they need root.

The modules that are not named test_* hold what the fixtures of conftest.py are made of; a test may
import them: `from integration.oracle import Oracle`.
"""
