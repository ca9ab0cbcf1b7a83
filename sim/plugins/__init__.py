"""Classes that a scenario chooses by name (policies, routers): how they are found, described, tried and checked."""
