"""Pipeline schedules on their own: settings from options, orders by name or file, what they cost, published rows."""
