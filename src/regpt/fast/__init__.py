"""The same numbers, sooner. Imports core; core never imports it."""
