"""Weight files and their cards: written, checked, converted, downloaded, averaged, traced back."""
