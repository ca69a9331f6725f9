"""Devices, the bus that connects them to the vCPUs, and the character back-ends behind them."""
