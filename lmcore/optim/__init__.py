"""The learning rate of each step (`schedule`), and what each optimizer keeps (`table`)."""
