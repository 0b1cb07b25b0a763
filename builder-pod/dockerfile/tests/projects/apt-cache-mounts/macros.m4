define(`HOST', `pilot')dnl
Welcome to HOST
