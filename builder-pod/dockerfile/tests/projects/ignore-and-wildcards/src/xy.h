src/xy.h
