// The command line of tidemarkd.
#pragma once

namespace tidemark::server {

// Exit status: 0 well, 1 it failed, 2 the arguments or the configuration are wrong.
int run_command_line(int argc, char** argv);

}  // namespace tidemark::server
