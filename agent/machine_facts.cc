#include "agent/machine_facts.h"

#include <unistd.h>

#include <algorithm>
#include <span>

#include "agent/text_file.h"
#include "base/crypto.h"
#include "base/hex.h"
#include "base/limits.h"
#include "wire/messages.h"

namespace tidemark::agent {

Result<std::string> machine_fingerprint(const OsPaths& os, const std::string& machine_id_path,
                                        const std::string& override_text) {
  std::string facts;
  if (!override_text.empty()) {
    facts = "override:" + override_text;
  } else {
    const auto uuid = read_line(os.sys / "class/dmi/id/product_uuid");
    const auto id = read_line(machine_id_path);
    if (!uuid && !id) {
      return fail(Code::not_found, machine_id_path, "this machine has neither a DMI UUID nor a machine id",
                  "run as root; without DMI make one with systemd-machine-id-setup");
    }
    facts = "dmi:" + uuid.value_or("") + "\nmachine-id:" + id.value_or("");
  }
  const Sha256 digest = sha256(std::string_view(facts));
  return std::string(reinterpret_cast<const char*>(digest.data()), digest.size());
}

Result<std::string> boot_id(const OsPaths& os) {
  const auto path = os.proc / "sys/kernel/random/boot_id";
  std::string digits = TIDEMARK_TRY(read_text_file(path));
  std::erase_if(digits, [](char c) { return c == '-' || c == '\n'; });
  std::string bytes(16, '\0');
  if (!from_hex(digits, std::as_writable_bytes(std::span(bytes))))
    return fail(Code::corrupt, path.string(), "not a boot id");
  return bytes;
}

std::string host_name() {
  char name[256] = {};
  if (::gethostname(name, sizeof name - 1) != 0) return "machine";
  std::string text(name);
  for (char& c : text) {
    const bool good =
        (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || (c >= '0' && c <= '9') || c == '.' || c == '_' || c == '-';
    if (!good) c = '-';
  }
  text = text.substr(0, limits::kNameLengthMax);
  return wire::valid_machine_name(text) ? text : "machine";
}

}  // namespace tidemark::agent
