#include <stdlib.h>
#include "sum.h"

int main(int argc, char **argv) {
    int all = 0;
    for (int at = 1; at < argc; at++) all = sum(all, atoi(argv[at]));
    return all;
}
