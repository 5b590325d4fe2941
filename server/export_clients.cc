#include "server/export_clients.h"

#include <fmt/format.h>
#include <spdlog/spdlog.h>

#include <algorithm>
#include <filesystem>
#include <nlohmann/json.hpp>
#include <tuple>

#include "server/logging.h"
#include "server/private_file.h"

namespace tidemark::server {

namespace {

using nlohmann::json;
using Certificate = ExportClients::Certificate;

constexpr std::size_t kSerialMax = 40;  // 20 bytes, as X.509 has it
constexpr char kSuffix[] = ".json";

bool is_serial(const std::string& text) {
  return text.size() >= 2 && text.size() <= kSerialMax && text.size() % 2 == 0 &&
         text.find_first_not_of("0123456789abcdef") == std::string::npos;
}

std::string path_of(const std::string& directory, const std::string& serial) {
  return directory + "/" + serial + kSuffix;
}

Status write(const std::string& directory, const Certificate& certificate) {
  std::error_code error;
  std::filesystem::create_directories(directory, error);
  if (error) return fail_errno(error.value(), directory, "make the directory");
  json record{
      {"client", certificate.client}, {"issued_us", certificate.issued_us}, {"expires_us", certificate.expires_us}};
  if (certificate.revoked_us) record["revoked_us"] = *certificate.revoked_us;
  return write_private_file(path_of(directory, certificate.serial), record.dump() + "\n");
}

// Nothing: it is damaged.
std::optional<Certificate> parse(const std::string& serial, const std::string& text) {
  const json record = json::parse(text, nullptr, false);
  if (!record.is_object()) return std::nullopt;
  Certificate certificate{.serial = serial, .client = {}, .issued_us = 0, .expires_us = 0, .revoked_us = {}};
  try {
    certificate.client = record.at("client").get<std::string>();
    certificate.issued_us = record.at("issued_us").get<WallMicros>();
    certificate.expires_us = record.at("expires_us").get<WallMicros>();
    if (record.contains("revoked_us")) certificate.revoked_us = record.at("revoked_us").get<WallMicros>();
  } catch (const json::exception&) {
    return std::nullopt;
  }
  return certificate;
}

Result<std::vector<Certificate>> read_all(const std::string& directory) {
  std::vector<Certificate> all;
  std::error_code error;
  std::filesystem::directory_iterator files(directory, error);
  if (error == std::errc::no_such_file_or_directory) return all;  // none was ever issued
  for (; !error && files != std::filesystem::directory_iterator(); files.increment(error)) {
    const std::string serial = files->path().stem().string();
    if (files->path().extension() != kSuffix || !is_serial(serial)) continue;
    const auto text = read_private_file(files->path().string());
    auto certificate = text ? parse(serial, *text) : std::nullopt;
    if (!certificate) {
      spdlog::warn("the record of a client's certificate cannot be read: it counts as revoked{}{}",
                   kv("path", files->path().string()), kv("remedy", "issue another one, and remove the file"));
      certificate = Certificate{.serial = serial, .client = {}, .issued_us = 0, .expires_us = 0, .revoked_us = 0};
    }
    all.push_back(*std::move(certificate));
  }
  if (error) return fail_errno(error.value(), directory, "list");
  std::ranges::sort(all, {}, [](const Certificate& one) { return std::tie(one.client, one.issued_us, one.serial); });
  return all;
}

}  // namespace

Result<std::unique_ptr<ExportClients>> ExportClients::load(const std::string& directory) {
  std::unique_ptr<ExportClients> clients(new ExportClients(directory));
  for (const Certificate& one : TIDEMARK_TRY(read_all(directory)))
    if (one.revoked_us) clients->revoked_.insert(one.serial);
  return clients;
}

Status ExportClients::record(const std::string& directory, const net::CertificateInfo& issued, WallMicros now_us) {
  return write(directory, {.serial = issued.serial,
                           .client = issued.client,
                           .issued_us = now_us,
                           .expires_us = issued.not_after_us,
                           .revoked_us = {}});
}

Result<std::vector<Certificate>> ExportClients::list() const { return read_all(directory_); }

Result<std::vector<Certificate>> ExportClients::revoke(const std::string& client_or_serial, WallMicros now_us) {
  const std::lock_guard changing(changing_);
  const auto all = TIDEMARK_TRY(read_all(directory_));
  std::vector<Certificate> chosen;
  std::ranges::copy_if(all, std::back_inserter(chosen),
                       [&](const Certificate& one) { return !one.client.empty() && one.client == client_or_serial; });
  if (chosen.empty()) {
    std::string serial = client_or_serial;  // openssl says it in capitals
    std::ranges::transform(serial, serial.begin(), [](unsigned char c) { return std::tolower(c); });
    if (!is_serial(serial))
      return fail(Code::not_found, client_or_serial, "no certificate was issued to a client of this name",
                  "`tidemark client list` shows them; a serial number is taken too");
    const auto known = std::ranges::find(all, serial, &Certificate::serial);
    chosen.push_back(
        known != all.end()
            ? *known
            : Certificate{.serial = serial, .client = {}, .issued_us = 0, .expires_us = 0, .revoked_us = {}});
  }
  std::erase_if(chosen, [](const Certificate& one) { return one.revoked_us.has_value(); });
  if (chosen.empty()) return fail(Code::already_exists, client_or_serial, "it is revoked already");
  for (Certificate& one : chosen) {
    one.revoked_us = now_us;
    TIDEMARK_TRY(write(directory_, one));
    const std::lock_guard lock(mutex_);
    revoked_.insert(one.serial);
  }
  return chosen;
}

}  // namespace tidemark::server
