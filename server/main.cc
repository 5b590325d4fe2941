#include "server/commands.h"

int main(int argc, char** argv) { return tidemark::server::run_command_line(argc, argv); }
