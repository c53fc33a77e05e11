// The Python module fastib._C. Loading it registers the CPU kernels with PyTorch's dispatcher, through static
// initialisers of the other files; what it exports itself is the choice of instruction set, and
// what tests need.
#define PY_SSIZE_T_CLEAN
#include <Python.h>

#include "common/stable.h"
#include "cpu/isa.h"
#include "cpu/joint.h"
#include "cpu/marginals.h"

namespace {

PyObject* isa(PyObject*, PyObject*) { return PyUnicode_FromString(fastib::isa_name(fastib::isa())); }

PyObject* supported_isas(PyObject*, PyObject*) {
  PyObject* names = PyList_New(0);
  for (int i = 0; names != nullptr && i <= int(fastib::best_isa()); ++i) {
    PyObject* name = PyUnicode_FromString(fastib::isa_name(fastib::Isa(i)));
    const bool failed = name == nullptr || PyList_Append(names, name) != 0;
    Py_XDECREF(name);
    if (failed) Py_CLEAR(names);
  }
  return names;
}

PyObject* use_isa(PyObject*, PyObject* argument) {
  PyObject* bytes = PyUnicode_AsUTF8String(argument);
  if (bytes == nullptr) return nullptr;
  const bool known = fastib::use_isa(PyBytes_AsString(bytes));
  Py_DECREF(bytes);
  if (!known) return PyErr_Format(PyExc_ValueError, "this processor or build has no kernels for %R", argument);
  Py_RETURN_NONE;
}

PyObject* poison_results(PyObject*, PyObject* argument) {
  const int on = PyObject_IsTrue(argument);
  if (on < 0) return nullptr;
  fastib::poison_results = on != 0;
  Py_RETURN_NONE;
}

// Sets *to to a Python number.
PyObject* set_number(double* to, PyObject* number) {
  const double value = PyFloat_AsDouble(number);
  if (PyErr_Occurred() != nullptr) return nullptr;
  *to = value;
  Py_RETURN_NONE;
}

PyObject* set_marginal_cutoff(PyObject*, PyObject* argument) { return set_number(&fastib::marginal_cutoff, argument); }

PyObject* set_joint_dropped_bits(PyObject*, PyObject* argument) {
  return set_number(&fastib::joint_dropped_bits, argument);
}

PyMethodDef methods[] = {
    {"isa", isa, METH_NOARGS, "Name of the instruction set that the kernels run on."},
    {"supported_isas", supported_isas, METH_NOARGS, "Names that use_isa accepts here, slowest first."},
    {"use_isa", use_isa, METH_O, "Run the kernels on the named instruction set from now on."},
    {"poison_results", poison_results, METH_O, "For tests: whether results are NaN until a kernel writes them."},
    {"set_marginal_cutoff", set_marginal_cutoff, METH_O, "For tests: the cutoff of csrc/cpu/marginals.h; 7 is usual."},
    {"set_joint_dropped_bits", set_joint_dropped_bits, METH_O, "For tests: that of csrc/cpu/joint.h; 24 is usual."},
    {nullptr, nullptr, 0, nullptr}};

PyModuleDef module = {PyModuleDef_HEAD_INIT, "_C", nullptr, -1, methods, nullptr, nullptr, nullptr, nullptr};

}  // namespace

PyMODINIT_FUNC PyInit__C() { return PyModule_Create(&module); }
