// `tidemarkd key ...`: the master key of a data directory.
#pragma once

#include <string>

namespace CLI {
class App;
}

namespace tidemark::server {

class KeyCommands {
 public:
  void add_to(CLI::App& app);
  bool parsed() const;
  int run() const;  // the exit status

 private:
  CLI::App* init_ = nullptr;
  CLI::App* show_ = nullptr;
  CLI::App* check_ = nullptr;
  CLI::App* rotate_ = nullptr;
  CLI::App* retire_ = nullptr;
  std::string data_, config_, file_;
};

}  // namespace tidemark::server
