"""One periodic loop: its class, its life, its thread and the resources that it holds."""
