"""One style for every picture (`plots`) and every page (`html`)."""
