"""What every room may rely on: errors that name a remedy, files that are whole or not there."""
