#include "server/key_commands.h"

#include <fmt/format.h>

#include <CLI/CLI.hpp>
#include <algorithm>
#include <filesystem>
#include <initializer_list>

#include "server/master_key.h"
#include "storage/system_files.h"

namespace tidemark::server {
namespace {

constexpr int kWell = 0, kFailed = 1, kWrong = 2;

constexpr const char* kWarning = R"(
  KEEP A COPY OF THIS FILE, AWAY FROM THE DATA AND FROM THIS MACHINE, WHERE ONLY THOSE CAN READ IT WHO MAY READ THE DATA.
  Without it nobody can read the encrypted data again: not you, not Tidemark's authors. A copy of the data directory
  is worth nothing without it. Copy it again after each `tidemarkd key rotate`.

)";

int failed(const Error& error, int status = kFailed) {
  fmt::print(stderr, "tidemarkd: {}\n", error.message());
  return status;
}

void print_keys(const storage::MasterKeys& keys, const std::vector<KeyNeed>& needs) {
  for (const auto& key : keys.keys()) {
    const auto need = std::ranges::find(needs, key.id, &KeyNeed::id);
    fmt::print("key {}  made {}  {}{}\n", storage::to_string(key.id), format_rfc3339(key.created_us),
               key.id == keys.current().id ? "in use" : "older",
               need == needs.end() ? "" : fmt::format(", needed by {}", fmt::join(need->partitions, ", ")));
  }
}

}  // namespace

void KeyCommands::add_to(CLI::App& app) {
  auto* key = app.add_subcommand("key", "The master key, with which the keys of encrypted volumes are wrapped");
  key->require_subcommand(1);
  init_ = key->add_subcommand("init", "Make the master key file; then set encryption = true in [storage]");
  show_ = key->add_subcommand("show", "The ids of the keys in the file, and who needs them");
  check_ = key->add_subcommand("check", "Check that the file has every key that the data directory needs");
  rotate_ = key->add_subcommand(
      "rotate",
      "Add a new key, in use from the next start on, which wraps all volumes' keys anew; no data is rewritten");
  retire_ =
      key->add_subcommand("retire", "Take older keys out of the file, once nothing is wrapped with them any more");
  for (auto* command : {init_, show_, check_, rotate_, retire_}) {
    command->add_option("--data", data_, "The data directory")->required();
    command->add_option("--config", config_, "Configuration file (default: tidemarkd.toml in the data directory)");
    command->add_option("--file", file_, "The master key file, instead of the configuration's");
  }
}

bool KeyCommands::parsed() const {
  return std::ranges::any_of(std::initializer_list<CLI::App*>{init_, show_, check_, rotate_, retire_},
                             [](const CLI::App* command) { return command != nullptr && command->parsed(); });
}

int KeyCommands::run() const {
  const Directory directory(data_);
  const auto superblock = read_superblock(directory);
  if (!superblock) return failed(superblock.error());
  Config config;
  std::error_code error;
  const bool has_config = !config_.empty() || std::filesystem::exists(directory.config(), error);
  if (has_config) {
    auto loaded = load_config(config_.empty() ? directory.config() : config_);
    if (!loaded) return failed(loaded.error(), kWrong);
    config = std::move(*loaded);
  }
  const std::string path = file_.empty() ? master_key_path(directory, config) : file_;
  auto& files = storage::system_files();
  const Clock& clock = Clock::system();
  const auto needs = master_keys_needed(files, directory, *superblock);
  if (!needs) return failed(needs.error());

  if (init_->parsed()) {
    const auto keys = init_master_key(files, directory, *superblock, path, clock);
    if (!keys) return failed(keys.error());
    fmt::print("made {} with master key {}\n{}", path, storage::to_string(keys->current().id), kWarning);
    if (!file_.empty() && path != master_key_path(directory, config))
      fmt::print("set master_key_file = \"{}\" in [storage]\n", path);
    if (!config.storage.encryption) fmt::print("next: set encryption = true in [storage] and start tidemarkd\n");
    return kWell;
  }
  if (rotate_->parsed()) {
    const auto keys = rotate_master_key(path, clock);
    if (!keys) return failed(keys.error());
    print_keys(*keys, *needs);
    fmt::print("{}next: restart tidemarkd; when it says that the new key is in use: tidemarkd key retire\n", kWarning);
    return kWell;
  }
  if (retire_->parsed()) {
    const auto keys = retire_master_keys(files, directory, *superblock, path);
    if (!keys) return failed(keys.error());
    print_keys(*keys, *needs);
    fmt::print("copies of the data directory from before still need the older keys: keep those as long as these\n");
    return kWell;
  }
  const auto keys = read_master_keys(path);
  if (!keys) return failed(keys.error());
  print_keys(*keys, *needs);
  if (check_->parsed()) {
    std::vector<storage::MasterKeyId> ids;
    for (const KeyNeed& need : *needs) ids.push_back(need.id);
    if (const auto all = keys->need(ids, data_); !all) return failed(all.error());
    fmt::print("{}: well\n", path);
  }
  return kWell;
}

}  // namespace tidemark::server
