"""Floor 0: config values, sharding, parameter trees and metrics; imports nothing from the floors above."""
